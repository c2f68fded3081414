"""What a rank uses: processors, memory, files, GPUs, and the time that its steps wait for data."""

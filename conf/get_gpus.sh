#!/bin/bash
# Spark's discovery script for GPUs. Prints, for example, {"name": "gpu", "addresses": ["0","1"]}.
set -eo pipefail
addresses=$(nvidia-smi --query-gpu=index --format=csv,noheader | sed 's/.*/"&"/' | paste -sd,)
echo "{\"name\": \"gpu\", \"addresses\": [$addresses]}"

"""How the ranks of one assignment find each other: a key-value store with the interface of torch's TCPStore.

torch's process groups exchange addresses through a store before they connect to each other. torch's own
TCPStore listens on every address of its machine and answers everybody, so this package has its own store.

**What listens where.** With `resources.rendezvous: driver` the driver opens one store per study, on one port
of `spark.driver.bindAddress`. With `spark` rank 0 of each attempt opens a store on its own address while the
attempt runs, and Spark's barrier passes its port to the other ranks. The ports are those of
`resources.ports`, or any. A study with one rank per trial opens nothing.

**Who may talk to it.** Both sides of a connection prove that they know the study's key: 32 random bytes that
Spark sends to the executors with each task. The proof (`frames`) is an HMAC-SHA256 over two nonces and the
name of a group, so it is worthless on another connection. A client can read and write only the keys of its
group, which is one attempt.

**Limits on strangers.** A connection has 10 s and 1 KiB to authenticate. When more than 256 connections have
not done so, the oldest of them is closed. A frame has at most 1 MiB and 10 s, a group at most 16,384 keys.
The first frame that breaks a rule closes its connection. Frames are JSON: nothing is unpickled.

**What it does not protect.** Frames are not encrypted; they hold addresses and ids, never data or weights.
The ranks then talk to each other through gloo or NCCL, which neither authenticate nor encrypt, so the network
between executors must be trusted. Who can read the tasks that Spark sends can read the key: use
`spark.network.crypto.enabled` or TLS where that matters.
"""

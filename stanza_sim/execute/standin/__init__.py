"""A stand-in for CUDA and NCCL: what waits for what on GPUs, imitated on the CPU with gloo.

Tensors are the CPU's. An operation of a thread that computes is a *kernel*: it is put on that thread's stream, returns
at once with outputs full of NaN, and is carried out some time later. A message of NCCL is a kernel on its
communicator's stream, and waiting for it makes only the calling thread's stream wait. And there is a watch over memory
(`order`): two kernels of different streams that touch the same bytes, one of them writing, without anything that
puts the one before the other, are an error, however they happen to come out this time.

What it imitates, after torch 2.13's sources and CUDA's programming guide:

- one current stream for each thread; kernels run in the order of their stream, and streams know nothing of each other;
- `Work.wait` of NCCL orders the current stream and returns; `is_completed` tells the host;
- a message waits for what the posting thread's stream has been given, a collective runs on that stream;
- a communicator exists once all its members have come to make it, and carries one operation after the other;
- copies to and from page-locked memory go on while the host does; gloo reads and writes that memory at once;
- memory that was freed while a stream other than the one it was allocated on may still use it is not safe.

What it cannot: rates and times; the width of a GPU, so that kernels wait for room; queues of the hardware that streams
share; autograd's choice of the forward pass's stream for the backward pass (here it is the calling thread's); the
caching allocator itself; memory that is not page-locked; the device and the host having tensors of different kinds.
"""

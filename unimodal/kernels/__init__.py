"""The kernels of attention, one file each. All compute the same; `unimodal.attention` chooses one.

| file | holds | memory beyond q, k, v |
|---|---|---|
| `dense` | everything at once in plain XLA, weights on request | T² |
| `lean` | the same, with a backward pass that computes the weights again | T |
| `blockwise` | tile by tile, unseen tiles left out; as a ring over the mesh axis `sequence` | T over that axis |
| `cudnn` | the fused kernel of NVIDIA GPUs | T |
| `splash` | the fused kernel of TPUs | T |
| `placed` | the same on a mesh: batch and heads in pieces, and sequences too | |
"""

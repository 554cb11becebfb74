"""The kernels of attention, one file each. Which one runs is decided in `unimodal.attention`; all compute the same.

| file | holds | memory beyond q, k, v |
|---|---|---|
| `dense` | everything at once in plain XLA, weights on request | T² |
| `blockwise` | tile by tile, unseen tiles left out; as a ring over the mesh axis `sequence` | T over that axis |
| `cudnn` | the fused kernel of NVIDIA GPUs | T |
| `splash` | the fused kernel of TPUs | T |
| `placed` | the same on a mesh: batch and heads in pieces, and sequences too | |
"""

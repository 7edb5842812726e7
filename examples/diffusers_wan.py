"""Wan2.1 in diffusers, with and without NaviCache.

    pip install ./crates/python diffusers transformers ftfy accelerate
    python examples/diffusers_wan.py "two cats boxing on a stage" cats.mp4
"""

import sys

import navicache
import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_video

prompt, path = sys.argv[1], sys.argv[2]
pipe = WanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", torch_dtype=torch.bfloat16)
pipe.enable_model_cpu_offload()

# `navicache:mid` skips steps; `reuse=corrected` leaves them to the solver, which is closer to the uncached video.
with navicache.cached(pipe, "navicache:mid,reuse=corrected") as session:
    video = pipe(prompt, height=480, width=832, num_frames=33, generator=torch.Generator().manual_seed(0)).frames[0]

print(session.report)  # what ran: `S` computed, `.` not
export_to_video(video, path, fps=16)

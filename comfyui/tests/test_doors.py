"""Three doors to one method: the engine, a pipeline of diffusers and ComfyUI's sampling, of one tiny model and one noise.

    COMFYUI=/path/to/ComfyUI pytest comfyui/tests        # with diffusers and transformers installed too
"""

import pathlib
import sys
import warnings

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[2] / "crates/python/tests")]
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from test_sampling import comfy, nodes, steps_of  # noqa: E402  (which skips where ComfyUI is not)

import navicache  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402
from navicache import diffusers as nc  # noqa: E402

STEPS, SHIFT, CFG = 20, 3.0, 5.0
PROMPTS = ("a cat walks on grass", "blurry")
NAVI = "navicache,align_steps=3,process_noise=0.05,measurement_noise=0.05"
CACHES = [
    NAVI + ",threshold=0.2",
    NAVI + ",threshold=0.2,reuse=linear",
    NAVI + ",threshold=0.2,reuse=corrected",
    "easycache,threshold=0.2,warmup_steps=3",
    "trend,threshold=0.2,warmup_steps=3",
    "taylorseer,interval=3,order=1,warmup_steps=3,level=output",
    "stride,threshold=0.02",
]
# diffusers' names of a Wan transformer's layers, and the authors', which ComfyUI has.
NAMES = [
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"),
    ("attn1.", "self_attn."), ("attn2.", "cross_attn."), (".to_out.0", ".o"),
    (".to_q", ".q"), (".to_k", ".k"), (".to_v", ".v"),
    ("norm2", "norm3"), ("proj_out", "head.head"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("wan")
    tiny.save_wan(path)
    return path


@pytest.fixture(scope="module")
def pipe(folder):
    from diffusers import WanPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = WanPipeline.from_pretrained(folder)
    pipe.scheduler = tiny.scheduler("euler", SHIFT)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def model(pipe):
    """The same weights in ComfyUI."""
    config = pipe.transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    made = comfy.supported_models.WAN21_T2V(
        {
            "image_model": "wan2.1", "model_type": "t2v", "dim": width, "ffn_dim": config.ffn_dim,
            "num_heads": config.num_attention_heads, "num_layers": config.num_layers, "text_dim": config.text_dim,
            "freq_dim": config.freq_dim, "in_dim": 16, "out_dim": 16, "dtype": torch.float32,
        }
    )  # fmt: skip
    made.set_inference_dtype(torch.float32, None)
    made.sampling_settings = {"shift": SHIFT}
    made = made.get_model({}, "")
    weights = {}
    for name, weight in pipe.transformer.state_dict().items():
        for theirs, authors in NAMES:
            name = name.replace(theirs, authors)
        name = "head.modulation" if name == "scale_shift_table" else name.replace("scale_shift_table", "modulation")
        weights[name] = weight
    made.diffusion_model.load_state_dict(weights)
    return comfy.model_patcher.ModelPatcher(made, torch.device("cpu"), torch.device("cpu"))


def by_engine(opened, cache, seed):
    given = {"size": (64, 64), "frames": 9, "steps": STEPS, "guidance": CFG, "solver": "euler", "shift": SHIFT}
    return navicache.generate(opened, PROMPTS[0], negative_prompt=PROMPTS[1], cache=cache, seed=seed, guard="act", **given)


def by_diffusers(pipe, seed):
    given = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": STEPS, "guidance_scale": CFG}
    generator = torch.Generator().manual_seed(seed)
    return pipe(*PROMPTS, generator=generator, output_type="latent", **given).frames


def by_comfyui(model, embeds, noise, sigmas):
    prompts = [[[embed, {}]] for embed in embeds]
    sampler = comfy.samplers.ksampler("euler")
    with torch.inference_mode():
        made = comfy.sample.sample_custom(
            model, noise, CFG, sampler, sigmas, *prompts, torch.zeros_like(noise), disable_pbar=True, seed=0
        )
    return model.model.process_latent_in(made)


def test_three_doors_decide_the_same(folder, pipe, model):
    opened = navicache.Pipeline(folder)
    seed, reusing = 3, 0
    with torch.no_grad():
        embeds = pipe.encode_prompt(*PROMPTS, True, 1, max_sequence_length=512)
    noise = torch.randn((1, 16, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
    for cache in CACHES:
        video = by_engine(opened, cache, seed)
        with nc.cached(pipe, cache) as session:
            of_diffusers = by_diffusers(pipe, seed)
            assert session.report["ended"] == "done", (cache, session.report.warnings)
            strip = session.report.strip
        patched, run = nodes["NaviCache"]().patch(model, "navicache", "mid", 0.0, "", cache)
        of_comfyui = by_comfyui(patched, embeds, noise, pipe.scheduler.sigmas)
        assert run.report["ended"] == "done", (cache, run.report.warnings)
        assert video.report.strip == strip == run.report.strip, cache
        of_engine = torch.from_numpy(video.latents.copy())
        for found in (of_diffusers, of_comfyui):
            assert (found - of_engine).abs().max() < 1e-3 * of_engine.abs().max(), cache
        reusing += "." in steps_of(run.report)
    assert reusing >= 6


"""The built-in strategies, which enter through the same hooks as a stranger's. Imports no torch."""

from __future__ import annotations

from aptp.core.hookspecs import PluginSpec, hookimpl

OPTIONS = "aptp.plugins.options"


@hookimpl
def aptp_routers() -> list[PluginSpec]:
    return [
        PluginSpec(
            "contrastive",
            "aptp.plugins.routers.contrastive:ContrastiveRouter",
            "APTP's: an architecture predictor and learned codes, compared by cosine",
            f"{OPTIONS}:ContrastiveOptions",
        ),
        PluginSpec(
            "kmeans",
            "aptp.plugins.routers.kmeans:KMeansRouter",
            "the nearest cluster of prompt embeddings; learned codes",
            f"{OPTIONS}:CodesOptions",
        ),
        PluginSpec(
            "complexity",
            "aptp.plugins.routers.complexity:ComplexityRouter",
            "prompts by difficulty, counted in words and written text; learned codes",
            f"{OPTIONS}:ComplexityOptions",
        ),
        PluginSpec(
            "random",
            "aptp.plugins.routers.random:RandomRouter",
            "a control: a hash of the prompt picks the expert; learned codes",
            f"{OPTIONS}:CodesOptions",
        ),
        PluginSpec(
            "random-codes",
            "aptp.plugins.routers.random_codes:RandomCodesRouter",
            "the control that a search must beat: clusters as in kmeans, random codes, calibrated",
            f"{OPTIONS}:RandomCodesOptions",
        ),
        PluginSpec(
            "constant",
            "aptp.plugins.routers.constant:ConstantRouter",
            "one expert for every prompt: what a static pruner serves with",
            f"{OPTIONS}:NoOptions",
        ),
    ]


@hookimpl
def aptp_balancers() -> list[PluginSpec]:
    return [
        PluginSpec(
            "sinkhorn",
            "aptp.plugins.balancers.sinkhorn:SinkhornBalancer",
            "entropic optimal transport with given shares (POT)",
            f"{OPTIONS}:SinkhornOptions",
        ),
        PluginSpec(
            "unbalanced",
            "aptp.plugins.balancers.unbalanced:UnbalancedBalancer",
            "entropic optimal transport whose shares are asked for, not forced",
            f"{OPTIONS}:UnbalancedOptions",
        ),
        PluginSpec(
            "load",
            "aptp.plugins.balancers.load:LoadBalancer",
            "no plan; the load-balancing loss of the Switch Transformer",
            f"{OPTIONS}:LoadOptions",
        ),
        PluginSpec(
            "entropy",
            "aptp.plugins.balancers.entropy:EntropyBalancer",
            "no plan; a penalty for uneven mean and unsure single assignments",
            f"{OPTIONS}:EntropyOptions",
        ),
        PluginSpec(
            "none",
            "aptp.plugins.balancers.none:NoBalancer",
            "each prompt takes its nearest code",
            f"{OPTIONS}:NoOptions",
        ),
    ]


@hookimpl
def aptp_granularities() -> list[PluginSpec]:
    target = "aptp.plugins.granularities"
    return [
        PluginSpec(
            "width",
            f"{target}.width:Width",
            "channel groups, heads and feed-forward bundles",
            f"{OPTIONS}:WidthOptions",
        ),
        PluginSpec("depth", f"{target}.depth:Depth", "whole blocks", f"{OPTIONS}:DepthOptions"),
        PluginSpec(
            "width-depth",
            f"{target}.width_depth:WidthDepth",
            "both: APTP's own search space",
            f"{OPTIONS}:WidthDepthOptions",
        ),
    ]


@hookimpl
def aptp_budgets() -> list[PluginSpec]:
    target = "aptp.plugins.budgets"
    return [
        PluginSpec(
            "macs", f"{target}.macs:MacsBudget", "multiply-accumulates of one denoiser call", f"{OPTIONS}:NoOptions"
        ),
        PluginSpec("params", f"{target}.params:ParamsBudget", "parameters of the denoiser", f"{OPTIONS}:NoOptions"),
        PluginSpec(
            "latency",
            f"{target}.latency:LatencyBudget",
            "wall time of one denoiser call, measured on the device at hand",
            f"{OPTIONS}:LatencyOptions",
        ),
    ]


@hookimpl
def aptp_denoisers() -> list[PluginSpec]:
    return [
        PluginSpec(
            "unet",
            "aptp.plugins.denoisers.unet:UNetDenoiser",
            "UNet2DConditionModel: Stable Diffusion 1.x, 2.x and XL",
            f"{OPTIONS}:NoOptions",
        ),
        PluginSpec(
            "pixart",
            "aptp.plugins.denoisers.pixart:PixArtDenoiser",
            "PixArtTransformer2DModel: PixArt-α and PixArt-Σ",
            f"{OPTIONS}:NoOptions",
        ),
        PluginSpec(
            "sd3",
            "aptp.plugins.denoisers.sd3:SD3Denoiser",
            "SD3Transformer2DModel: Stable Diffusion 3 and 3.5",
            f"{OPTIONS}:NoOptions",
        ),
    ]


@hookimpl
def aptp_encoders() -> list[PluginSpec]:
    target = "aptp.plugins.encoders"
    return [
        PluginSpec(
            "minilm",
            f"{target}.minilm:MiniLM",
            "all-MiniLM-L6-v2 from its Python package, no network",
            f"{OPTIONS}:MiniLMOptions",
        ),
        PluginSpec(
            "sentence-transformers",
            f"{target}.sentence:SentenceEncoder",
            "any sentence-transformers folder or hub name",
            f"{OPTIONS}:HubOptions",
        ),
        PluginSpec(
            "clip",
            f"{target}.clip:ClipTextEncoder",
            "the text tower of any CLIP folder or hub name",
            f"{OPTIONS}:HubOptions",
        ),
    ]


@hookimpl
def aptp_datasets() -> list[PluginSpec]:
    target = "aptp.plugins.datasets"
    return [
        PluginSpec("scenes", f"{target}.scenes:Scenes", "procedural captioned scenes of graded difficulty"),
        PluginSpec(
            "imagefolder", f"{target}.imagefolder:ImageFolder", "a folder of pictures with metadata.jsonl or .csv"
        ),
        PluginSpec("coco", f"{target}.coco:Coco", "MS-COCO captions, 2014 or 2017"),
        PluginSpec(
            "cc3m", f"{target}.cc3m:CC3M", "web pictures: a TSV with their folder, or img2dataset's shards or files"
        ),
        PluginSpec("datasets", f"{target}.library:Library", "whatever the datasets library loads, from disk or hub"),
        PluginSpec("emoji", f"{target}.emoji:Emoji", "glyphs of a colour font with their Unicode names"),
    ]


@hookimpl
def aptp_metrics() -> list[PluginSpec]:
    target = "aptp.plugins.metrics"
    return [
        PluginSpec(
            "cmmd",
            f"{target}.cmmd:CMMD",
            "maximum mean discrepancy of CLIP image embeddings",
            f"{OPTIONS}:FeatureOptions",
        ),
        PluginSpec(
            "frechet",
            f"{target}.frechet:FrechetDistance",
            "Fréchet distance of CLIP image embeddings",
            f"{OPTIONS}:FeatureOptions",
        ),
        PluginSpec(
            "clip-score",
            f"{target}.clip_score:ClipScore",
            "cosine of picture and prompt, times 100",
            f"{OPTIONS}:FeatureOptions",
        ),
    ]

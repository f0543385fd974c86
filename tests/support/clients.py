"""How other programs find the layer of a LoRA's key: their rules, written from their documented behaviour.

Every rule takes the layers of the UNet (diffusers' names) and says which layer it finds for a key, or None. The block
names of the original code follow from its loops: two layers and, but for the last, one sampler in each level.
"""

import re
from collections.abc import Callable, Sequence

from torch import Tensor

Find = Callable[[str], str | None]
ENDS = (".lora_down.weight", ".lora_up.weight", ".alpha")
BLOCKS = (  # diffusers, original
    (r"^down_blocks([._])(\d+)[._]attentions[._](\d+)", "input_blocks", 1),
    (r"^up_blocks([._])(\d+)[._]attentions[._](\d+)", "output_blocks", 0),
)


def original(name: str) -> str:
    """A diffusers name, with dots or underscores, under the blocks of the original code; others stay."""
    for pattern, block, first in BLOCKS:
        found = re.match(pattern, name)
        if found:
            dot, level, layer = found.groups()
            return f"{block}{dot}{first + 3 * int(level) + int(layer)}{dot}1{name[found.end() :]}"
    return re.sub(r"^mid_block([._])attentions[._]0", r"middle_block\g<1>1", name)


def flat(name: str) -> str:
    return name.replace(".", "_")


def comfy(layers: Sequence[str], sdxl: bool) -> Find:
    """ComfyUI and Forge (``model_lora_keys_unet``): lora_unet_ before the original or the diffusers names."""
    known = {f"lora_unet_{flat(original(layer))}": layer for layer in layers}
    known |= {f"lora_unet_{flat(layer)}": layer for layer in layers}
    known |= {f"{p}{layer.replace('.to_', '.processor.to_')}": layer for layer in layers for p in ("", "unet.")}
    return known.get


def a1111(layers: Sequence[str], sdxl: bool) -> Find:
    """A1111 (``convert_diffusers_name_to_compvis``): renames diffusers' blocks; else puts the original's prefix."""
    known = {f"diffusion_model_{flat(original(layer))}": layer for layer in layers}

    def find(key: str) -> str | None:
        if not key.startswith("lora_unet_"):
            return None
        name = key.removeprefix("lora_unet_")
        return known.get(f"diffusion_model_{original(name)}") or known.get(f"diffusion_model_{name}")

    return find


def invoke(layers: Sequence[str], sdxl: bool) -> Find:
    """InvokeAI: flattened diffusers names; of SDXL the original blocks are renamed first, by the longest prefix."""
    known = {flat(layer): layer for layer in layers}
    blocks = sorted({re.split(r"\.transformer_blocks", layer)[0] for layer in layers})
    renamed = {flat(original(block)): flat(block) for block in blocks} if sdxl else {}

    def find(key: str) -> str | None:
        if not key.startswith("lora_unet_"):
            return None
        name = key.removeprefix("lora_unet_")
        for block in sorted(renamed, key=len, reverse=True):
            if name.startswith(block):
                name = renamed[block] + name.removeprefix(block)
        return known.get(name)

    return find


def stable_diffusion_cpp(layers: Sequence[str], sdxl: bool) -> Find:
    """stable-diffusion.cpp: underscores become dots, but in known words; then the blocks are renamed."""
    known = {original(layer): layer for layer in layers}
    words = ("down_blocks", "up_blocks", "mid_block", "input_blocks", "output_blocks", "middle_block")
    words += ("transformer_blocks", "to_k", "to_v", "to_q", "to_out")

    def find(key: str) -> str | None:
        if not key.startswith("lora_unet_"):
            return None
        name = key.removeprefix("lora_unet_")
        for word in words:
            name = name.replace(word, word.replace("_", "\0"))
        return known.get(original(name.replace("_", ".").replace("\0", "_")))

    return find


def sd_scripts(layers: Sequence[str], sdxl: bool) -> Find:
    """sd-scripts: its own modules' names, which are diffusers' for SD 1.x and 2.x and the original ones for SDXL."""
    return {f"lora_unet_{flat(original(layer) if sdxl else layer)}": layer for layer in layers}.get


CLIENTS: dict[str, Callable[[Sequence[str], bool], Find]] = {
    "ComfyUI": comfy,
    "Forge": comfy,
    "A1111": a1111,
    "InvokeAI": invoke,
    "stable-diffusion.cpp": stable_diffusion_cpp,
    "sd-scripts": sd_scripts,
}


def applied(tensors: dict[str, Tensor], find: Find) -> dict[str, str]:
    """Which layer is found for each key of a file; keys of no layer are left out."""
    found = {}
    for key in tensors:
        stem = next((key.removesuffix(end) for end in ENDS if key.endswith(end)), key)
        layer = find(stem)
        if layer is not None:
            found[key] = layer
    return found

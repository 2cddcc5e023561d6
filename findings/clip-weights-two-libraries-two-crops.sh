#!/usr/bin/env bash
# The same CLIP weights see the whole image in open_clip and its middle nine tenths in timm.
#
# Versions: timm 1.0.31, open_clip_torch 3.3.0, torch 2.14.1.
# Source: https://github.com/huggingface/pytorch-image-models, timm/models/vision_transformer.py (`_cfg`, crop_pct), and
# https://github.com/mlfoundations/open_clip, src/open_clip/pretrained.py, whose entry names timm's repository of the same
# weights (`hf_hub`).
#
# One would expect: a pretrained model and the transform that its library proposes for it belong together, so an embedding
# of an image by CLIP ViT-B/32 is the same from either library, apart from rounding.
#
# Seen: timm resizes the shorter side to 248 and cuts out 224, for B/32 and B/16, while open_clip resizes it to 224 and cuts
# out the same size, as the authors of CLIP do. So timm never sees the outer tenth of the image. timm's own configuration
# of L/14, from the same authors, has no such crop. The test image has a white frame of 4% of its width on a black ground.
# A catalogue that changes from one library to the other has to be embedded again.
#
# Output:
#   vit_base_patch32_clip_224.openai: timm keeps 0.9, open_clip names the same weights: yes
#   vit_base_patch16_clip_224.openai: timm keeps 0.9, open_clip names the same weights: yes
#   vit_large_patch14_clip_224.openai: timm keeps 1.0, open_clip names the same weights: yes
#   frame visible in ViT-B/32: timm no, open_clip yes
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "timm==1.0.31" "open_clip_torch==3.3.0" "torch==2.14.1" "torchvision==0.29.1"
"$folder/venv/bin/python" -W ignore - >"$folder/output" 2>"$folder/errors" <<'PYTHON' || { tail -5 "$folder/errors" >&2; exit 1; }
import open_clip
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg

tags = {"ViT-B-32": "vit_base_patch32", "ViT-B-16": "vit_base_patch16", "ViT-L-14": "vit_large_patch14"}
for architecture, prefix in tags.items():
    name = f"{prefix}_clip_224.openai"
    same = name in open_clip.get_pretrained_cfg(architecture, "openai")["hf_hub"]
    kept = get_pretrained_cfg(name).crop_pct
    print(f"{name}: timm keeps {kept}, open_clip names the same weights: {'yes' if same else 'no'}")

image = Image.new("RGB", (500, 500), "white")
image.paste("black", (20, 20, 480, 480))
settings = resolve_data_config(pretrained_cfg=get_pretrained_cfg("vit_base_patch32_clip_224.openai").to_dict())
frame = open_clip.get_pretrained_cfg("ViT-B-32", "openai")
transforms = {
    "timm": create_transform(**settings),
    "open_clip": image_transform_v2(
        PreprocessCfg(size=224, mean=frame["mean"], std=frame["std"], resize_mode=frame["resize_mode"]), is_train=False
    ),
}
seen = {name: "yes" if transform(image)[:, 0, 0].min() > 0 else "no" for name, transform in transforms.items()}
print(f"frame visible in ViT-B/32: timm {seen['timm']}, open_clip {seen['open_clip']}")
PYTHON
diff - "$folder/output" <<'EXPECTED' || { echo "The behaviour has changed." >&2; exit 1; }
vit_base_patch32_clip_224.openai: timm keeps 0.9, open_clip names the same weights: yes
vit_base_patch16_clip_224.openai: timm keeps 0.9, open_clip names the same weights: yes
vit_large_patch14_clip_224.openai: timm keeps 1.0, open_clip names the same weights: yes
frame visible in ViT-B/32: timm no, open_clip yes
EXPECTED
echo "As described."

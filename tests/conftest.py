"""One set-up for every test: no network, shapes checked, single-threaded torch."""

import os

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", TOKENIZERS_PARALLELISM="false")

from jaxtyping import install_import_hook

install_import_hook("raybrew.losses", "beartype.beartype")

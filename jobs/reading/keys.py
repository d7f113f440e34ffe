"""A key that a schema does not know: what was meant by it, and where that is written.

It may be a name of ours that stands elsewhere, another program's name for one of ours, or a typo.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jobs.errors import nearest
from jobs.reading.paths import Place

# The end of a place in a kind's settings or in resources -> what transformers (TrainingArguments,
# model configurations), fairseq, NeMo, ESPnet, Lightning, PyTorch and Slurm call it.
OTHERS = {
    "learning_rate": "lr peak_lr max_lr base_lr initial_lr",
    "optim.warmup_steps": "warmup_steps warmup warmup_updates num_warmup_steps warmup_iters "
    "warmup_ratio",
    "optim.weight_decay": "wd l2",
    "optim.clip_norm": "max_grad_norm grad_clip clip_grad clip_grad_norm gradient_clip_val "
    "gradient_clipping max_norm",
    "optim.decay": "lr_scheduler lr_scheduler_type lr_schedule scheduler sched",
    "optim.method": "optimizer optimiser",
    "optim.betas": "adam_betas adam_beta1 adam_beta2",
    "accumulate": "gradient_accumulation_steps accumulate_grad_batches update_freq "
    "accum_grad grad_accum",
    "batch_utterances": "batch_size per_device_train_batch_size train_batch_size",
    "batch_seconds": "batch_size batch_duration batch_bins max_duration",
    "batch_tokens": "batch_size per_device_train_batch_size train_batch_size max_tokens",
    "epochs": "num_epochs max_epochs max_epoch num_train_epochs",
    "max_steps": "max_update max_updates total_steps num_steps train_steps max_iters",
    "steps": "max_steps epochs num_epochs max_epochs num_train_epochs max_update num_steps",
    "log_every": "logging_steps log_interval log_every_n_steps log_steps",
    "valid_every": "eval_steps eval_every eval_interval eval_strategy evaluation_strategy "
    "val_check_interval validate_interval validate_interval_updates validation_steps",
    "checkpoint_every": "save_steps save_every save_strategy save_interval save_interval_updates "
    "checkpoint_interval every_n_train_steps",
    "keep_checkpoints": "save_total_limit save_top_k keep_interval_updates keep_nbest_models",
    "precision": "fp16 bf16 amp use_amp mixed_precision dtype torch_dtype",
    "seed": "random_seed manual_seed data_seed",
    "workers": "num_workers dataloader_num_workers",
    "tf32": "allow_tf32 use_tf32 float32_matmul_precision",
    "compile": "torch_compile compile_model use_compile",
    "activation_checkpointing": "gradient_checkpointing checkpoint_activations recompute",
    "sharded": "fsdp deepspeed zero zero_stage sharded_ddp",
    "stopping.patience": "early_stopping_patience early_stopping",
    "average.decay": "ema ema_decay use_ema",
    "augment.speeds": "speed_perturb speed_perturbation",
    "augment.frequency_masks": "specaug spec_augment freq_masks num_freq_masks",
    "model.dropout": "audio_encoder_dropout encoder_dropout hidden_dropout attention_dropout "
    "activation_dropout dropout_rate",
    "model.hidden": "hidden_size d_model embed_dim encoder_embed_dim encoder_dim n_embd",
    "model.layers": "num_layers n_layers num_hidden_layers encoder_layers num_blocks",
    "model.blocks": "num_layers n_layers num_hidden_layers encoder_layers num_blocks",
    "model.attention_heads": "num_heads n_heads nhead num_attention_heads encoder_attention_heads",
    "model.heads": "num_heads n_heads nhead num_attention_heads encoder_attention_heads",
    "model.mlp": "intermediate_size ffn_dim d_ff feedforward_dim encoder_ffn_embed_dim",
    "model.mels": "n_mels num_mels num_mel_bins",
    "vocabulary_size": "vocab_size",
    "train": "train_manifest train_data train_ds train_file train_dataset manifest_filepath",
    "dev": "dev_manifest valid_manifest valid_data validation_ds validation_file eval_dataset",
    "manifest": "train_manifest dev_manifest test_manifest manifest_filepath",
    "teacher": "teacher_model teacher_checkpoint teacher_model_name_or_path",
    "distill.alpha": "kd_alpha distillation_alpha alpha_ce",
    "time": "walltime time_limit timeout timeout_min",
    "nodes": "num_nodes nnodes",
    "gpus": "gpu num_gpus gpus_per_node ntasks_per_node gres devices",
    "cpus": "cpu num_cpus cpus_per_task cores",
    "memory_gb": "mem memory mem_gb ram",
}


def suggest_key(key: str, model: type[BaseModel], at: Place, beside: Mapping[str, Any]) -> str:
    """What to write instead of `key`, which the block at `at` in `model` does not know.

    `beside` has the models of the blocks beside `model`, in which the key may have its place.
    """
    inside, level = places(model), fields_at(model, at)
    outside = {name: one for other in beside for name, one in places(beside[other], other).items()}
    ends = [*(end for end, names in OTHERS.items() if key in names.split()), key]
    for known in (inside, outside):
        for end in ends:
            if found := _ending(end, known):
                out = f"beside {at[0]}, not in it, " if at and found == [key] else ""
                return out + " or ".join(f"write {n}: ...{about(known[n])}" for n in found)
    return _typo(key, list(level), inside)


def fields_at(model: type[BaseModel], place: Place) -> dict[str, FieldInfo]:
    """The fields of the block that a place inside `model` leads to."""
    for part in place:
        field = model.model_fields.get(str(part))
        inner = _block(field) if field else None
        if inner is None:
            return {}
        model = inner
    return dict(model.model_fields)


def about(field: FieldInfo | Mapping[str, Any]) -> str:
    """What a setting means, in brackets."""
    said = field.description if isinstance(field, FieldInfo) else field.get("description")
    return f" ({said})" if said else ""


def _block(field: FieldInfo) -> type[BaseModel] | None:
    options = [field.annotation, *getattr(field.annotation, "__args__", ())]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def places(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Every setting of a model, blocks and what is in them too, by its place with dots."""
    found: dict[str, Any] = {}
    for key, field in model.model_fields.items():
        name = f"{prefix}.{key}" if prefix else key
        found[name] = field
        if inner := _block(field):
            found |= places(inner, name)
        extra = field.json_schema_extra
        known = extra.get("properties") if isinstance(extra, dict) else None
        if isinstance(known, dict):  # the settings of a model, which depend on its family
            found |= {f"{name}.{setting}": schema for setting, schema in known.items()}
    return found


def _ending(end: str, places: Iterable[str]) -> list[str]:
    """The places that end so, those with the fewest dots."""
    found = [name for name in places if f".{name}".endswith(f".{end}")]
    fewest = min((name.count(".") for name in found), default=0)
    return [name for name in found if name.count(".") == fewest]


def _typo(key: str, level: list[str], places: Iterable[str]) -> str:
    """The nearest name of the block itself, then of any block."""
    deeper = {name.rpartition(".")[2]: name for name in places}
    close = difflib.get_close_matches(key, deeper, 1)
    if close and not difflib.get_close_matches(key, level, 1):
        return f"did you mean {deeper[close[0]]!r}?"
    return nearest(key, level)

"""Tunes a prompt with PEFT alone: `python docs/results/peft_prompt.py ADAPTER`, the folder to make.

The prompt starts at an instruction for the task, as in PEFT's own guide, and is tuned on the
built-in reviews: one would like to believe that it still does what it reads as.
"""

import random
import sys

import peft
import torch
import transformers
from torch.nn.utils.rnn import pad_sequence

import wayward_jax as wj
from wayward_jax import assets
from wayward_jax.jobs.settings import default_cache_dir

INSTRUCTION = "Classify if the review is great or terrible:"
STEPS, BATCH_SIZE, LEARNING_RATE = 200, 8, 3e-2


def main(adapter: str) -> None:
    file = assets.fetch("smollm2-135m", cache_dir=default_cache_dir())
    gguf = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**gguf)
    model = transformers.AutoModelForCausalLM.from_pretrained(**gguf, dtype=torch.float32)
    model.name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"  # which the adapter will name
    tokenizer.save_pretrained(adapter)  # PEFT reads the instruction's tokens with it
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=INSTRUCTION,
        num_virtual_tokens=len(tokenizer(INSTRUCTION).input_ids),
        tokenizer_name_or_path=adapter,
    )
    model = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, STEPS)

    reviews = wj.load_task("reviews")
    examples = list(zip(reviews.train.texts, reviews.train.labels, strict=True))
    random.seed(0)
    for step in range(STEPS):
        batch = random.sample(examples, BATCH_SIZE)
        asked = [tokenizer(f"{text} It was").input_ids for text, _ in batch]
        answers = [
            tokenizer(f" {reviews.task.label_words[label]} .").input_ids for _, label in batch
        ]
        both = list(zip(asked, answers, strict=True))
        ids = pad_sequence([torch.tensor(q + a) for q, a in both], batch_first=True)
        labels = pad_sequence(
            [torch.tensor([-100] * len(q) + a) for q, a in both],
            batch_first=True,
            padding_value=-100,
        )
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(adapter)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Generating text from a loaded model: streamed for a chat, short and greedy for a before-and-after comparison."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

Messages = Sequence[dict[str, str]]
"""`role` and `content` of each turn."""
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
"""Chat models end a turn with one of these, though eos may be another token."""
PROMPT_TOKENS_KEPT = 0.75
"""Share of the context that a prompt may fill; an older beginning is cut off."""


def stream(
    model: Any,
    tokenizer: Any,
    messages: Messages,
    max_new_tokens: int = 256,
    *,
    base: bool = False,
    sample: bool = False,
) -> Iterator[str]:
    """Pieces of the answer as they come. Greedy, or drawn as the generation config says with `sample`.

    `base` answers with the adapter switched off. Closing the iterator ends the generation within a token.
    """
    from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

    closed = threading.Event()

    class Closed(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            import torch

            return torch.full((input_ids.shape[0],), closed.is_set(), device=input_ids.device)

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    failure: list[BaseException] = []

    def work() -> None:
        try:
            with _evaluating(model, base):
                model.generate(
                    **_inputs(model, tokenizer, messages),
                    **_options(model, tokenizer, max_new_tokens, sample),
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([Closed()]),
                )
        except BaseException as exc:  # noqa: BLE001 - this thread's edge: handed to the reader, who would wait for ever
            failure.append(exc)
            streamer.end()

    thread = threading.Thread(target=work, name="generate", daemon=True)
    thread.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        closed.set()
        thread.join()
    if failure:
        raise failure[0]


def answers(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int = 48, *, base: bool = False
) -> list[str]:
    """The greedy answer to each prompt, one at a time; under ZeRO-3 every rank calls it alike."""
    found = []
    with _evaluating(model, base):
        for prompt in prompts:
            inputs = _inputs(model, tokenizer, [{"role": "user", "content": prompt}])
            output = model.generate(**inputs, **_options(model, tokenizer, max_new_tokens, sample=False))
            new = output[0, inputs["input_ids"].shape[1] :]
            found.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    return found


def stop_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: the generation config's, the tokenizer's and the chat format's end of turn."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = set(configured if isinstance(configured, list) else [configured])
    ids.add(tokenizer.eos_token_id)
    ids.update(index for token, index in tokenizer.get_added_vocab().items() if token in END_OF_TURN)
    return sorted(index for index in ids if index is not None)


def _inputs(model: Any, tokenizer: Any, messages: Messages) -> dict[str, Any]:
    """input_ids and attention_mask (1, tokens) on the model's device; without a chat template the last text as it is."""
    if tokenizer.chat_template:
        encoded = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
    else:
        encoded = tokenizer(messages[-1]["content"], return_tensors="pt")
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    keep = int(longest * PROMPT_TOKENS_KEPT) if longest else encoded["input_ids"].shape[1]
    device = model.get_input_embeddings().weight.device
    return {key: encoded[key][:, -keep:].to(device) for key in ("input_ids", "attention_mask")}


def _options(model: Any, tokenizer: Any, max_new_tokens: int, sample: bool) -> dict[str, Any]:
    stops = stop_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0] if stops else 0
    options = {"max_new_tokens": max_new_tokens, "eos_token_id": stops or None, "pad_token_id": pad, "use_cache": True}
    if not sample:
        options |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return options


@contextmanager
def _evaluating(model: Any, base: bool) -> Iterator[None]:
    """No dropout and no gradient, the adapter off for `base`; a model in training goes back to it afterwards."""
    import torch

    training = model.training
    # A full model has no adapter to switch off.
    without: AbstractContextManager[Any] = model.disable_adapter() if base else nullcontext()
    model.eval()
    try:
        with torch.no_grad(), without:
            yield
    finally:
        model.train(training)

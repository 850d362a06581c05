"""A row as a vision-language model's prompt: by its chat template, else in a plain format."""

from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError

from vembed.errors import ModelError

_PROBE = "zyx"


class Conversation:
    """Renders a row's instruction, images and text, in this order, as one string with a placeholder for each image.

    With a chat template: the instruction is a system message, images and text are one user message, and, with
    starts_answer, the generation prompt follows. If the template has no system messages, the instruction is put before
    the user's text.

    Without a chat template: placeholders, instruction and text, one after the other, as the processor completes them
    (PaliGemma's puts a BOS token before the text and a newline after it).
    """

    def __init__(self, processor: Any, *, starts_answer: bool = True) -> None:  # Any: transformers is untyped here
        self._processor = processor
        self._starts_answer = starts_answer
        self._image_token = str(processor.image_token)
        template = getattr(processor, "chat_template", None) or None
        self._template = template.get("default") if isinstance(template, dict) else template
        self._content_is_parts = self._template is None or "type" in self._template
        self.with_system = self._template is not None and self._renders_system_message()

    @property
    def has_template(self) -> bool:
        """True if the processor has a chat template."""
        return self._template is not None

    @property
    def in_messages(self) -> bool:
        """True if a chat template renders messages whose content is a list of parts (text, image)."""
        return self.has_template and self._content_is_parts

    def render(self, instruction: str, text: str | None, num_images: int) -> str:
        """The row as one string, with a placeholder for each image, which the processor replaces."""
        if self._template is None:
            return self._plain_text(instruction + (text or ""), num_images)
        messages: list[dict[str, object]] = []
        if instruction and self.with_system:
            messages.append({"role": "system", "content": self._content(instruction, 0)})
        elif instruction:
            text = f"{instruction}\n{text or ''}"
        messages.append({"role": "user", "content": self._content(text or "", num_images)})
        return self._rendered(messages)

    def _rendered(self, messages: list[dict[str, object]]) -> str:
        options = {"tokenize": False, "add_generation_prompt": self._starts_answer}
        rendered: str = self._processor.apply_chat_template(messages, **options)
        return rendered

    def _content(self, text: str, num_images: int) -> object:
        if not self._content_is_parts:
            return self._image_token * num_images + text
        words = [{"type": "text", "text": text}] if text or not num_images else []
        return [{"type": "image"}] * num_images + words

    def _plain_text(self, words: str, num_images: int) -> str:
        if type(self._processor).__name__ == "PaliGemmaProcessor" and not num_images:
            return f"{self._processor.tokenizer.bos_token}{words}\n"  # as its processor does beside images only
        return self._image_token * num_images + words

    def _renders_system_message(self) -> bool:
        messages = [
            {"role": "system", "content": self._content(_PROBE, 0)},
            {"role": "user", "content": self._content("a", 0)},
        ]
        try:
            return _PROBE in self._rendered(messages)
        except TemplateError:
            return False


def common_ending(encode: Callable[[str], list[int]], render: Callable[[str], str]) -> list[int]:
    """The tokens that follow every row's text: the end of the turn, and the generation prompt."""
    first, second = (encode(render(text)) for text in ("0", "1 2 3 4"))
    length = 0
    while length < min(len(first), len(second)) and first[-1 - length] == second[-1 - length]:
        length += 1
    if length == min(len(first), len(second)):
        raise ModelError("the chat template leaves a row's text out: nothing of it reaches the model")
    return first[len(first) - length :]

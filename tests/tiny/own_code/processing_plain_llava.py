"""Its processor, which puts a fixed number of tokens where a picture stands and has its own way to do so."""

from transformers import BatchFeature, ProcessorMixin


class PlainLlavaProcessor(ProcessorMixin):
    def __init__(self, image_processor=None, tokenizer=None, num_patches=16, chat_template=None, **kwargs):
        self.num_patches = num_patches
        self.image_token = "<image>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images=None, text=None, return_tensors=None, **kwargs):
        pixels = self.image_processor(images, return_tensors=return_tensors) if images is not None else {}
        words = [one.replace(self.image_token, self.image_token * self.num_patches) for one in text]
        return BatchFeature({**self.tokenizer(words, return_tensors=return_tensors, **kwargs), **pixels})

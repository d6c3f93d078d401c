"""Networks to train and extract, by import path like any other model. They need torch."""

from stanza_sim.model.examples.language import bert, gpt2, llama
from stanza_sim.model.examples.small import digits_cnn, narrow_vgg16, tiny_cnn
from stanza_sim.model.examples.wide_heads import iresnet18, lstm_2048_512

__all__ = ["bert", "digits_cnn", "gpt2", "iresnet18", "llama", "lstm_2048_512", "narrow_vgg16", "tiny_cnn"]

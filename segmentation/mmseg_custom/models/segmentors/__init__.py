from .mask2former import EncoderDecoderMask2Former, EncoderDecoderMask2FormerAug

__all__ = ["EncoderDecoderMask2Former", "EncoderDecoderMask2FormerAug"]

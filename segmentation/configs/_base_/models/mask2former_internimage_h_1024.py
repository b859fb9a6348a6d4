# The same with a head of 1024 channels, 32 attention heads and 200 queries.
_base_ = "./mask2former_internimage_h.py"
model = dict(
    decode_head=dict(
        feat_channels=1024,
        out_channels=1024,
        num_queries=200,
        pixel_decoder=dict(
            encoder=dict(
                transformerlayers=dict(
                    attn_cfgs=dict(embed_dims=1024, num_heads=32),
                    ffn_cfgs=dict(embed_dims=1024, feedforward_channels=4096),
                )
            ),
            positional_encoding=dict(num_feats=512),
        ),
        positional_encoding=dict(num_feats=512),
        transformer_decoder=dict(
            transformerlayers=dict(
                attn_cfgs=dict(embed_dims=1024, num_heads=32),
                ffn_cfgs=dict(embed_dims=1024, feedforward_channels=4096),
                feedforward_channels=4096,
            )
        ),
    )
)

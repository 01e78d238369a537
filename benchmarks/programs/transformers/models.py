"""Models of other kinds in a loop of one's own: images, speech, experts, state spaces."""

import torch
from tiny import VOCABULARY
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def _train(model, **batch):
    model = model.to("cuda", torch.bfloat16).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(3):
        moved = {
            name: values.to("cuda", torch.bfloat16 if values.is_floating_point() else None)
            for name, values in batch.items()
        }
        model(**moved).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _tokens(length=64, rows=4):
    tokens = torch.arange(rows * length).reshape(rows, length) % 400 + 10
    return {"input_ids": tokens, "labels": tokens}


def llava():
    """LLaVA: an image before the text of each row."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=56,
            patch_size=14,
            projection_dim=128,
        ),
        text_config=LlamaConfig(**SIZES),
        image_token_id=4,
    )
    batch = _tokens(rows=2)
    batch["input_ids"] = batch["input_ids"].clone()
    batch["input_ids"][:, :16] = 4
    _train(
        LlavaForConditionalGeneration(config),
        **batch,
        pixel_values=torch.rand(2, 3, 56, 56),
        attention_mask=torch.ones(2, 64, dtype=torch.long),
    )


def qwen2_5_vl():
    """Qwen2.5-VL: an image of 4 x 4 patches among the text of each row."""
    config = Qwen2_5_VLConfig(
        text_config=SIZES
        | {
            "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": 256,
            "fullatt_block_indexes": [1],
        },
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=7,
        vision_end_token_id=8,
    )
    batch = _tokens(rows=2)
    tokens = batch["input_ids"].clone()
    tokens[:, 4], tokens[:, 5:9], tokens[:, 9] = 7, 5, 8
    batch["input_ids"] = tokens
    _train(
        Qwen2_5_VLForConditionalGeneration(config),
        **batch,
        attention_mask=torch.ones_like(tokens),
        pixel_values=torch.rand(2 * 16, 3 * 2 * 14 * 14),
        image_grid_thw=torch.tensor([[1, 4, 4]] * 2),
        mm_token_type_ids=(tokens == 5).int(),
    )


def whisper():
    """Whisper on log-mel features."""
    config = WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        max_source_positions=100,
        decoder_start_token_id=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    _train(
        WhisperForConditionalGeneration(config),
        input_features=torch.rand(2, 80, 200),
        labels=_tokens(16, 2)["labels"],
    )


def wav2vec2():
    """Wav2Vec2 with the CTC loss on waves of sound."""
    config = Wav2Vec2Config(
        vocab_size=32,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        conv_dim=(64,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        mask_time_length=4,
    )
    model = Wav2Vec2ForCTC(config).cuda()
    model.freeze_feature_encoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(3):
        waves = torch.randn(2, 16000, device="cuda")
        labels = torch.randint(1, 32, (2, 12)).to("cuda")
        model(input_values=waves, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def vision_transformer():
    """ViT as a classifier of images."""
    config = ViTConfig(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=64,
        num_labels=10,
    )
    _train(
        ViTForImageClassification(config),
        pixel_values=torch.rand(4, 3, 64, 64),
        labels=torch.arange(4),
    )


def _mixtral(experts):
    config = MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
    config._experts_implementation = experts
    _train(MixtralForCausalLM(config), **_tokens())


def mixtral_eager():
    """Mixtral with a loop over its experts."""
    _mixtral("eager")


def mixtral_grouped():
    """Mixtral with grouped products of matrices."""
    _mixtral("grouped_mm")


def mixtral_batched():
    """Mixtral with batched products of matrices."""
    _mixtral("batched_mm")


def _qwen2_moe(experts):
    config = Qwen2MoeConfig(
        **SIZES,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=128,
        shared_expert_intermediate_size=256,
        decoder_sparse_step=1,
        output_router_logits=True,
    )
    config._experts_implementation = experts
    _train(Qwen2MoeForCausalLM(config), **_tokens())


def qwen2_moe_eager():
    """Qwen2-MoE with a loop over its experts and the loss of its router."""
    _qwen2_moe("eager")


def qwen2_moe_grouped():
    """Qwen2-MoE with grouped products of matrices and the loss of its router."""
    _qwen2_moe("grouped_mm")


def mamba():
    """Mamba, without its own kernels."""
    _train(
        MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=2)),
        **_tokens(length=32),
    )


def mamba2():
    """Mamba-2, without its own kernels."""
    config = Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=2,
        num_heads=4,
        head_dim=64,
        n_groups=1,
        chunk_size=32,
    )
    _train(Mamba2ForCausalLM(config), **_tokens())


def linear_attention():
    """Qwen3-Next: layers of linear and of full attention, with experts."""
    config = Qwen3NextConfig(
        **SIZES,
        head_dim=64,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=128,
        shared_expert_intermediate_size=128,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
        layer_types=["linear_attention", "full_attention"],
    )
    _train(Qwen3NextForCausalLM(config), **_tokens())

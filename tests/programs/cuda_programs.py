"""Training steps as they are written for a GPU."""

from __future__ import annotations

import torch


def _llama(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        use_cache=False,
        **changes,
    )
    return LlamaForCausalLM(config)


def plain():
    model = _llama(tie_word_embeddings=True).to(torch.bfloat16).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(3):
        ids = torch.randint(4096, (4, 256), device="cuda")
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def loss_scaling():
    model = _llama().to("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler("cuda")
    for _ in range(3):
        ids = torch.randint(4096, (4, 256)).to("cuda", non_blocking=True)
        mask = torch.ones(4, 256, dtype=torch.long).cuda()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)


def lora():
    import peft

    with torch.device("cuda"):
        model = _llama()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    targets = ["q_proj", "v_proj", "up_proj"]
    config = peft.LoraConfig(r=8, lora_dropout=0.1, target_modules=targets)
    model = peft.get_peft_model(model, config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
    rows = torch.randint(4096, (8, 256))
    for batch in torch.utils.data.DataLoader(rows, batch_size=4, pin_memory=True):
        ids = batch.to(0)
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def saved_on_host():
    model = torch.nn.Sequential(
        torch.nn.Linear(512, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 8)
    )
    model.cuda()
    for is_pinned in (False, True):
        with torch.autograd.graph.save_on_cpu(pin_memory=is_pinned):
            loss = model(torch.randn(64, 512, device="cuda")).square().mean()
        loss.backward()


def losses_under_autocast():
    model = torch.nn.Linear(128, 512).cuda()
    rows = torch.randn(2048, 128, device="cuda")
    labels = torch.randint(512, (2048,), device="cuda")
    shares = torch.rand(2048, 512, device="cuda")
    for target, smoothing in ((labels, 0.0), (labels, 0.1), (shares, 0.1)):
        loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            value = loss(model(rows), target)
        value.backward()


class _Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.projected = torch.nn.Linear(width, 3 * width, bias=False)
        self.output = torch.nn.Linear(width, width, bias=False)

    def forward(self, states):
        batch, tokens, width = states.shape
        heads = (
            self.projected(states).view(batch, tokens, 3, width // 64, 64).permute(2, 0, 3, 1, 4)
        )
        attended = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        return states + self.output(attended.transpose(1, 2).reshape(states.shape))


def attention_kept():
    """Checkpoints that keep the outputs of attention, by a kernel that the program chooses."""
    from functools import partial

    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

    kept = [
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
    ]
    blocks = torch.nn.ModuleList([_Block(256) for _ in range(3)]).to("cuda", torch.bfloat16)
    for backend in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        states = torch.randn(4, 256, 256, device="cuda", dtype=torch.bfloat16)
        with sdpa_kernel(backend):
            for block in blocks:
                states = checkpoint(
                    block,
                    states,
                    use_reentrant=False,
                    context_fn=partial(create_selective_checkpoint_contexts, kept),
                )
            states.float().square().mean().backward()


def drawn():
    generator = torch.Generator(device="cuda").manual_seed(3)
    torch.randn(64, 64, device="cuda", generator=generator)
    assert generator.device.type == "cuda"
    torch.empty(64, pin_memory=True).cuda(non_blocking=True)


def offloaded():
    """Weights that come and go, and an optimizer on the host."""
    model = torch.nn.Linear(512, 512).cuda()
    masters = [weight.detach().cpu().requires_grad_() for weight in model.parameters()]
    optimizer = torch.optim.AdamW(masters)
    for _ in range(2):
        model(torch.randn(64, 512, device="cuda")).sum().backward()
        for master, weight in zip(masters, model.parameters(), strict=True):
            master.grad = weight.grad.cpu()
            weight.grad = None
        optimizer.step()
        with torch.no_grad():
            for master, weight in zip(masters, model.parameters(), strict=True):
                weight.copy_(master)
        model.to("cpu").to("cuda")


def preferred():
    """The loss of pairs: the device keeps no buffer for the backward pass."""
    rewards = torch.randn(1 << 21, device="cuda", requires_grad=True)
    torch.nn.functional.logsigmoid(rewards).mean().backward()


def packed():
    """Values that a mask puts in their places, and their gradients."""
    values = torch.randn(1000, 999, device="cuda", requires_grad=True)
    mask = torch.arange(1000, device="cuda").unsqueeze(1) % 3 == 0
    torch.zeros(1000, 1000, device="cuda").masked_scatter(mask, values).sum().backward()


def checked():
    loss = torch.randn(1 << 21, device="cuda")
    return bool(torch.isinf(loss).any())


def product_in_float32():
    half = torch.randn(64, 64, device="cuda", dtype=torch.bfloat16)
    torch.mm(half, half, out_dtype=torch.float32)


def inner_product():
    vector = torch.randn(64, device="cuda")
    return torch.dot(vector, vector)


def compared():
    """What differs in numbers that are known, and whether they are equal."""
    numbers = torch.tensor([0, 0, 1, 1, 5], device="cuda")
    unique = torch.unique_consecutive(numbers)
    torch.zeros(1000 * torch.tensor([unique[0], unique[-1]]).sum(), device="cuda")
    _, where = torch.unique_consecutive(numbers, return_inverse=True)
    _, counts = torch.unique_consecutive(numbers, return_counts=True)
    torch.zeros(1000 * torch.tensor([counts[0], where[-1]], device="cuda").sum(), device="cuda")
    same = torch.equal(numbers, numbers.clone()), torch.equal(numbers, numbers + 1)
    torch.zeros(1000, int(same[0]) + 5 * int(same[1]), device="cuda")


def spoken():
    """The CTC loss of rows of different lengths, by lengths on the host and on the device."""
    scores = torch.randn(50, 4, 30, device="cuda", requires_grad=True)
    for device in ("cpu", "cuda"):
        steps = torch.full((4,), 50, device=device)
        lengths = torch.tensor([20, 10, 5, 7], device=device)
        for shape in ((4, 20), (42,)):
            targets = torch.randint(1, 30, shape, device="cuda")
            logarithms = scores.log_softmax(-1)
            torch.nn.functional.ctc_loss(logarithms, targets, steps, lengths).backward()


def convolved():
    """Group norms with and without weights, over pixels and over vectors."""
    image = torch.randn(200, 32, 16, 16, device="cuda", requires_grad=True)
    for affine in (False, True):
        norm = torch.nn.GroupNorm(8, 32, affine=affine).cuda()
        (norm(image).sum() + norm(image[:, :, 0, 0]).sum()).backward()


def written_under_autocast():
    """Autocast casts nothing where an output is given."""
    left, right = torch.randn(2, 256, 256, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        torch.mm(left, right, out=torch.empty_like(left))
        torch.addmm(left, left, right, out=left)


def convolved_in_both_formats():
    """Gradients, inputs and weights in other memory formats than each other."""
    for image_format in (torch.contiguous_format, torch.channels_last):
        for weight_format in (torch.contiguous_format, torch.channels_last):
            image = torch.randn(64, 8, 32, 32, device="cuda").to(memory_format=image_format)
            layer = torch.nn.Conv2d(8, 8, 3).cuda().to(memory_format=weight_format)
            out = layer(image.requires_grad_())
            out.backward(torch.ones_like(out, memory_format=torch.channels_last))
            layer(image).sum().backward()


def normalized():
    """Norms in one kernel, and of rows that do not lie together."""
    rows = torch.randn(256, 20_000, device="cuda", dtype=torch.bfloat16).t().requires_grad_()
    for norm in (torch.nn.LayerNorm(256), torch.nn.RMSNorm(256)):
        norm.to("cuda", torch.bfloat16)(rows).sum().backward()


def selected():
    """Picks along a dimension: their gradient is written into zeros."""
    scores = torch.randn(1000, 1000, device="cuda", requires_grad=True)
    places = torch.zeros(1000, 1, dtype=torch.long).cuda()
    scores.gather(1, places).sum().backward()
    scores.topk(4).values.sum().backward()
    scores.index_select(0, places[:, 0]).sum().backward()
    torch.maximum(scores, scores.detach()).sum().backward()


def projected():
    """A bias is added in place where rows do not lie together."""
    layer = torch.nn.Linear(64, 512).cuda()
    layer(torch.randn(8, 64, 512, device="cuda").transpose(1, 2)).sum().backward()


def losses():
    numbers = torch.rand(1 << 20, device="cuda", requires_grad=True)
    targets = torch.rand(1 << 20, device="cuda")
    functional = torch.nn.functional
    for loss in (
        functional.mse_loss,
        functional.huber_loss,
        functional.smooth_l1_loss,
        functional.binary_cross_entropy,
        functional.binary_cross_entropy_with_logits,
        functional.soft_margin_loss,
    ):
        numbers.grad = None
        loss(numbers, targets).backward()
        loss(numbers, targets, reduction="none").sum().backward()
    weights = {"weight": targets, "pos_weight": targets}
    functional.binary_cross_entropy_with_logits(numbers, targets, **weights).backward()


PROGRAMS = {
    program.__name__: program
    for program in (
        plain,
        loss_scaling,
        lora,
        saved_on_host,
        losses_under_autocast,
        attention_kept,
        drawn,
        offloaded,
        preferred,
        packed,
        checked,
        product_in_float32,
        inner_product,
        convolved_in_both_formats,
        normalized,
        selected,
        projected,
        losses,
        compared,
        spoken,
        convolved,
        written_under_autocast,
    )
}

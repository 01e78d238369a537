"""Compiled code, graphs and flexible attention of PyTorch."""

import torch
from tiny import VOCABULARY, llama
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention


def _mlp():
    return nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)).cuda()


def _train(model, forward):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(3):
        forward(torch.randn(64, 256, device="cuda")).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def compiled_mlp():
    """A small compiled network."""
    model = _mlp()
    _train(model, torch.compile(model))


def compiled_llama():
    """A compiled Llama."""
    model = llama().to("cuda", torch.bfloat16)
    forward = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(3):
        tokens = torch.arange(4 * 64, device="cuda").reshape(4, 64) % VOCABULARY
        forward(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def compiled_optimizer():
    """A compiled step of the optimizer."""
    model = _mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    step = torch.compile(optimizer.step, fullgraph=False)
    for _ in range(3):
        model(torch.randn(64, 256, device="cuda")).square().mean().backward()
        step()
        optimizer.zero_grad()


def graph_of_inference():
    """A captured forward pass that is replayed."""
    model = _mlp().eval()
    inputs = torch.zeros(64, 256, device="cuda")
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                model(inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = model(inputs)
        for _ in range(3):
            inputs.copy_(torch.randn(64, 256, device="cuda"))
            graph.replay()
    outputs.clone()


def graph_of_training():
    """A whole step that is captured and replayed."""
    model = _mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, capturable=True)
    inputs = torch.randn(64, 256, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            model(inputs).square().mean().backward()
            optimizer.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        model(inputs).square().mean().backward()
        optimizer.step()
    for _ in range(3):
        inputs.copy_(torch.randn(64, 256, device="cuda"))
        graph.replay()


def graphed_callable():
    """A module whose forward and backward passes are graphs."""
    model = _mlp()
    example = torch.randn(64, 256, device="cuda", requires_grad=True)
    _train(model, torch.cuda.make_graphed_callables(model, (example,)))


def flex_attention_eager():
    """flex_attention without compilation."""
    query, key, value = (
        torch.randn(2, 4, 128, 64, device="cuda", requires_grad=True) for _ in range(3)
    )
    mask = create_block_mask(lambda b, h, q, kv: q >= kv, None, None, 128, 128, device="cuda")
    flex_attention(query, key, value, block_mask=mask).sum().backward()


def flex_attention_compiled():
    """flex_attention compiled, with a sliding window."""
    query, key, value = (
        torch.randn(2, 4, 256, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )

    def window(batch, head, q, kv):
        return (q >= kv) & (q - kv < 64)

    mask = create_block_mask(window, None, None, 256, 256, device="cuda")
    torch.compile(flex_attention)(query, key, value, block_mask=mask).sum().backward()

"""Graph networks of PyTorch Geometric."""

import torch
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GATConv, GCNConv, global_mean_pool


class _Network(torch.nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second
        self.head = torch.nn.Linear(64, 4)

    def forward(self, graph):
        hidden = self.first(graph.x, graph.edge_index).relu()
        hidden = self.second(hidden, graph.edge_index).relu()
        return self.head(global_mean_pool(hidden, graph.batch))


def _graphs():
    made = []
    for nodes in (20, 35, 50, 65):
        source = torch.arange(nodes)
        edges = torch.stack([source, (source + 1) % nodes])
        made.append(Data(x=torch.randn(nodes, 32), edge_index=edges))
    return Batch.from_data_list(made)


def _train(model):
    model = model.cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(3):
        graph = _graphs().to("cuda")
        torch.nn.functional.cross_entropy(model(graph), torch.arange(4, device="cuda")).backward()
        optimizer.step()
        optimizer.zero_grad()


def convolutions():
    """Graph convolutions over a batch of graphs of different sizes."""
    _train(_Network(GCNConv(32, 128), GCNConv(128, 64)))


def attention():
    """Graph attention over a batch of graphs of different sizes."""
    _train(_Network(GATConv(32, 32, heads=4), GATConv(128, 64)))

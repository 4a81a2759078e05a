"""Every `nn.Module`: how the layers of each family are read, written, copied and counted."""

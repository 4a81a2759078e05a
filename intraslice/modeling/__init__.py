"""Every `nn.Module` of the library: reads, writes, copies and counts the layers of each model family."""

"""The same descriptors by other libraries, as far as they are installed."""

import numpy as np

import rmac


def peers_for(x, layout, levels, workers):
    """Return functions that describe x, by name."""
    nchw = x if layout == "NCHW" else x.transpose(0, 3, 1, 2)
    boxes = rmac.region_grid(*nchw.shape[2:], levels=levels).boxes.tolist()
    peers = {"numpy loop": lambda: numpy_loop(nchw, boxes)}
    try:
        import torch
    except ImportError:
        return peers
    if x.dtype.name == "bfloat16":
        tensor = torch.from_numpy(nchw.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(nchw)
    torch.set_num_threads(workers)
    peers["torch loop"] = lambda: torch_loop(torch, tensor, boxes)
    try:
        from torchvision.ops import roi_pool
    except ImportError:
        return peers
    if tensor.dtype in (torch.float32, torch.float64):
        rois = torch.from_numpy(rmac.rmac_regions(nchw, scales=levels)).to(tensor.dtype)
        peers["torchvision roi_pool"] = lambda: torchvision_pool(roi_pool, tensor, rois)
    return peers


def numpy_loop(x, boxes):
    total = np.zeros(x.shape[:2], np.float32)
    for x1, y1, x2, y2 in boxes:
        region = x[:, :, y1 : y2 + 1, x1 : x2 + 1].max(axis=(2, 3)).astype(np.float32)
        total += region / np.linalg.norm(region, axis=1, keepdims=True)
    return total / np.linalg.norm(total, axis=1, keepdims=True)


def torch_loop(torch, x, boxes):
    total = torch.zeros(x.shape[:2], device=x.device)
    for x1, y1, x2, y2 in boxes:
        region = x[:, :, y1 : y2 + 1, x1 : x2 + 1].amax(dim=(2, 3)).float()
        total += region / region.norm(dim=1, keepdim=True)
    return total / total.norm(dim=1, keepdim=True)


def torchvision_pool(roi_pool, x, rois):
    pooled = roi_pool(x, rois, output_size=1).reshape(x.shape[0], -1, x.shape[1]).float()
    total = (pooled / pooled.norm(dim=2, keepdim=True)).sum(dim=1)
    return total / total.norm(dim=1, keepdim=True)

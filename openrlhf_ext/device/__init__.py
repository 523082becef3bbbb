"""The device is a value, chosen once; the rest of the code asks what it can do, never which it is."""

from openrlhf_ext.device.choose import Capability, Device, DeviceKind, attention, choose_device, honour, visible_gpus

__all__ = ["Capability", "Device", "DeviceKind", "attention", "choose_device", "honour", "visible_gpus"]

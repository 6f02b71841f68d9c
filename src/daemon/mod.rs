//! The control process: starts and watches the server of each mount; holds no FUSE descriptor.

"""The layouts of folders of images: one file for each way in which people keep captions and classes beside them."""

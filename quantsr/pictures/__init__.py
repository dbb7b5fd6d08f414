"""Picture files for training, evaluation and upscaling.

`formats` has the list of formats and the size limit, `names` tells which files of a folder are
pictures, `listing` lists them, `decode` decodes a file, `metadata` handles EXIF and resolution,
`transparency` alpha. Imports no torch.
"""

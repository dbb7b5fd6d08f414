"""Picture files for training, evaluation and upscaling: which formats are read, and what a file
holds.

`formats` has the one list of formats and the size limit, `names` which files of a folder count,
`listing` those that a folder or a list gives, `decode` decodes a file, `metadata` has EXIF and
resolution, `transparency` what belongs to alpha. Imports no torch.
"""

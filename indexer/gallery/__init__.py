"""An answer of the index that people can look at: one page, or one sheet, of its clips' pictures.

`tiles` asks the index; `thumbnails` takes pictures of the very frames that the model saw, in the
sandbox; `links` makes addresses that open a video at a time, and nothing else; `view` puts it all
into words and numbers, which `page` and `sheet` draw.
"""

"""The page of `quantsr demo`: a picture is dropped, upscaled on this machine and compared with
bicubic interpolation. `networks.py` upscales, `server.py` answers the browser, `page.html` is what
it shows. Imports neither torch nor BasicSR.
"""

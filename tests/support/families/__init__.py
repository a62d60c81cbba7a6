"""Small random pipelines of further families, built from the libraries' own classes. Nothing is downloaded.

`text_to_image`, `editing` and `video` have one function per family, which takes a directory for the tokenizer's files;
`parts` has what they share.
"""

def missing_pages(p):
    return []

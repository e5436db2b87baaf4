"""ComfyUI's way in. Nothing is imported before ComfyUI asks for the nodes."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import LetsTalkExtension

    return LetsTalkExtension()

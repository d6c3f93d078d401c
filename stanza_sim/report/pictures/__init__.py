"""Pictures of a result's folder, for papers and slides: PNG and SVG, legible in grey and to the colour-blind."""

from stanza_sim.report.pictures.folder_pictures import draw_folder

__all__ = ["draw_folder"]

"""Colours of pages and pictures: those of Okabe and Ito, told apart by the colour-blind, and by greys and hatches.

M. Okabe, K. Ito: Color Universal Design (2008), https://jfly.uni-koeln.de/color/.
"""

from __future__ import annotations

from stanza_sim.report.lanes import Activity

SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
"""Lines and bars of strategies, in this order; of the last, Okabe and Ito's yellow is too pale for a line on white."""
REST = "#B8B8B8"
"""What is drawn but not told apart."""
ACTIVITIES = {
    Activity.COMPUTATION: "#0072B2",
    Activity.COMMUNICATION: "#E69F00",
    Activity.WAITING: "#BBBBBB",
}
HATCHES = {Activity.COMPUTATION: "", Activity.COMMUNICATION: "////", Activity.WAITING: ".."}
CRITICAL = "#D55E00"
"""The outline of what is on the critical path."""

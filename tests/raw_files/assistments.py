"""ASSISTments 2009-2010: the file with a row for every skill."""

from __future__ import annotations

from raw_files.files import RawFile, Row, names

HEADER = names(
    "order_id assignment_id user_id assistment_id problem_id original correct attempt_count "
    "ms_first_response tutor_mode answer_type sequence_id student_class_id position type "
    "base_sequence_id skill_id skill_name teacher_id school_id hint_count hint_total overlap_time "
    "template_id answer_id answer_text first_action bottom_hint opportunity opportunity_original"
)
SKILLS = ["Box and Whisker", "Ordering, Fractions", "Pattern Finding"]


def assistments_2009() -> list[RawFile]:
    rows: list[Row] = []
    for pupil in range(4):
        for k in range(20):
            problem = 51400 + (pupil + 3 * k) % 15
            right, order = int(k % 3 > 0), 33022537 + 100 * k + pupil
            taught = SKILLS[problem % 3 :][:2] if problem % 5 else [None]
            original, asked = int(k % 10 != 9), 0 if right else k % 2
            for skill in taught:
                number = None if skill is None else SKILLS.index(skill)
                before = (order, 277618, 64500 + pupil, 33139, problem, original, right, 1, 32454)
                about = ("tutor", "algebra", 5948, 13241, 126, "MasterySection", 5948, number)
                after = (skill, 22763, 73 + pupil % 2, 0, 3, 32454, 30799, None, "2 cm\xb2", asked)
                rows.append((*before, *about, *after, None, k, k))
    return [RawFile("skill_builder_data.csv", rows, header=HEADER, quoted=True, encoding="latin-1")]

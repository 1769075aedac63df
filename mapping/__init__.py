"""Tables in and out: rows become the requests of a batch, and its answers become columns.

    table = open_table(path)                              # mapping.formats.opening: CSV, TSV, JSON Lines, Parquet, Excel
    mapper = RowMapper(parse_spec(mapping), table)        # mapping.spec, mapping.row_mapper: all checks of the mapping
    previous = Previous(open_table(out), table, mapper)   # mapping.previous: only to update an earlier output
    counts = write_requests(plan_rows(table, mapper, previous), file)      # mapping.join: the input file of the batch
    # … the batch runs …
    with Answers() as answers:                            # mapping.answers: output and error files of one or more batches
        answers.add(lines)                                # `read_answer` reads the body of a single response
        joined = join_rows(plan_rows(table, mapper, previous), mapper, answers)
        counts = write_table(joined, table, mapper.added, file, TableFormat.CSV)   # mapping.formats.writing

Everything wrong with the table or the mapping is a `MappingError` with the field in `param`; everything wrong with one row
or answer ends in the row's `error` cell. Custom ids are made of the bodies of requests: equal rows are asked once, and a
repeated command finds its answers: `write_requests(…, answered=answers)` writes only what has no answer yet.
"""

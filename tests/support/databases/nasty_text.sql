-- Text that looks like parts of a dump, to a reader that does not know where it is.
CREATE TABLE lines (id serial PRIMARY KEY, value text);
INSERT INTO lines (value) VALUES
    (''), (NULL), ('\N'), ('\\N'), ('N'), ('NULL'), (' '), (E'\t'), (E'\n'), (E'\r'), (E'\r\n'),
    ('\.'), (E'\\.\n'), (E'before\n\\.\nafter'), ('\'), ('\\'), ('\t'), ('\n'), ('\x41'), ('\101'),
    (E'\b\f\v\x7f\x01'), ('pg_dump: error: query failed'), (E'\npg_dump: warning: no\n'),
    ('\! touch /tmp/never'), ('\connect postgres'), ('\restrict key'), (E'\\unrestrict key\n'),
    ('COPY public.lines (id, value) FROM stdin;'), (E'\\.\n\nCOPY public.lines (id, value) FROM stdin;\n1\tx\n\\.\n'),
    ('-- PostgreSQL database dump complete'), (E'--\n-- PostgreSQL database dump complete\n--\n'),
    ('it''s "quoted" $$ and $tag$'), (E'\'; DROP TABLE lines; --'), ('é'), (E'e\u0301'), ('漢字'), ('😀👩‍👩‍👧‍👦🇩🇪'),
    (E'\uFEFFmark'), (E'\u202Ertl'), (E'\u2028'), (repeat('😀', 5000)), (repeat(E'\\.\n', 5000)),
    (repeat('x', 1200000));

-- COPY writes an empty string in a table of one column as an empty line.
CREATE TABLE one_column (value text);
INSERT INTO one_column VALUES (''), (''), (NULL), ('\.'), ('x'), (E'\n'), ('\N'), ('');
CREATE TABLE one_character (value char(1));
INSERT INTO one_character SELECT chr(n) FROM generate_series(32, 126) AS n;

CREATE TABLE no_rows (id integer, value text);
CREATE TABLE no_columns ();
INSERT INTO no_columns SELECT FROM generate_series(1, 5);
CREATE TABLE no_columns_no_rows ();

CREATE TABLE fake (
    a integer,
    b text DEFAULT E'first\nCOPY public.fake (a) FROM stdin;\n1\n\\.\n\nSELECT ''last'';',
    c text DEFAULT '
\.
'
        CHECK (c <> '
COPY public.no_such_table (x) FROM stdin;
\.
')
);
INSERT INTO fake (a) VALUES (1), (2);
COMMENT ON TABLE fake IS 'A comment
COPY public.fake (a, b) FROM stdin;
1	2
\.

--
-- PostgreSQL database dump complete
--
';
COMMENT ON COLUMN fake.a IS E'it''s \\ here\n\\restrict abc\n\\!';

CREATE FUNCTION whole_dump() RETURNS text LANGUAGE sql IMMUTABLE AS $outer$
    SELECT $inner$
COPY public.fake (a, b, c) FROM stdin;
1	two	\N
\.


--
-- Data for Name: lines; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.lines (id, value) FROM stdin;
\.

SELECT pg_catalog.setval('public.lines_id_seq', 1, true);

--
-- PostgreSQL database dump complete
--

\unrestrict abc
$inner$ || 'it''s $$ over' || E'\\.\n'
$outer$;

CREATE FUNCTION tags(text) RETURNS text LANGUAGE plpgsql AS $_$
BEGIN
    -- an unpaired ' and an unpaired " and /* in a comment
    EXECUTE format($$SELECT %L || $q$ '
COPY public.lines (id, value) FROM stdin;
\. $q$ $$, $1);
    RETURN $1;
END
$_$;
COMMENT ON FUNCTION tags(text) IS E'COPY public.fake (a) FROM stdin;\n\\.\n';

CREATE VIEW looks_like_data AS
SELECT E'\nCOPY public.fake (a) FROM stdin;\n7\n\\.\n'::text AS script, whole_dump() AS dump;

CREATE TYPE label AS ENUM (E'\\.', E'a\nb', '-- PostgreSQL database dump complete', 'COPY x FROM stdin;');
CREATE TABLE labelled (value label);
INSERT INTO labelled SELECT unnest(enum_range(NULL::label));

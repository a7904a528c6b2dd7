-- A database of encoding LATIN1: whoever takes its dump for UTF-8 fails or damages it.
CREATE TABLE texts (id serial PRIMARY KEY, value text DEFAULT E'd\xe9faut');
INSERT INTO texts (value) SELECT chr(n) || ' ' || n FROM generate_series(160, 255) AS n;
INSERT INTO texts DEFAULT VALUES;
CREATE TYPE size AS ENUM ('petit', E'tr\xe8s grand');
CREATE TABLE sizes (value size);
INSERT INTO sizes SELECT unnest(enum_range(NULL::size));
COMMENT ON TABLE texts IS E'\xe9crit en fran\xe7ais';

-- A database of encoding SQL_ASCII checks nothing: this one holds bytes that are no UTF-8.
CREATE TABLE bytes (id serial PRIMARY KEY, value text);
INSERT INTO bytes (value) VALUES
    ('plain'), (E'\xff\xfe'), (E'caf\xe9'), (E'caf\xc3\xa9'), (E'\xf0\x9f'), (E'\xc0\x80'), (E'\x80\\.\x80');
INSERT INTO bytes (value) SELECT chr(n) || 'x' FROM generate_series(128, 255) AS n;
COMMENT ON TABLE bytes IS E'caf\xe9';

-- A database of encoding EUC_JP: characters of one, two and three bytes, none of them UTF-8.
CREATE TABLE texts (id serial PRIMARY KEY, value text);
INSERT INTO texts (value) VALUES
    ('plain'), (E'\xc6\xfc\xcb\xdc\xb8\xec'), (E'\xa4\xd2\xa4\xe9\xa4\xac\xa4\xca'),
    (E'\x8e\xb1\x8e\xb2'), (E'\x8f\xb0\xa1'), (E'\xc9\xbd\t\xb2\xbd\\.');
COMMENT ON TABLE texts IS E'\xc6\xfc\xcb\xdc\xb8\xec';

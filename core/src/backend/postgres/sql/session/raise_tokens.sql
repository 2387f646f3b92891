-- Gives the rows that were taken together one token. No row: somebody else's.
--
-- $1 keys, $2 owner token, $3 fencing token
WITH raised AS (
    UPDATE polylock_session SET token = $3 WHERE key = ANY ($1::text[]) AND owner = $2
    RETURNING CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
)
SELECT true FROM raised LIMIT 1

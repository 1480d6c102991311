package convert

import "fmt"

// sum is a count of rows and an order-independent hash of them: the sums of both halves of each row's MD5, as decimal texts. Sums of parts add up to
// the sum of the whole, so that they can be kept while rows come and go.
type sum struct {
	Rows int64
	A, B string
}

// sums is a query for the sums of the rows of `from` by UTC month. OFFSET 0 keeps the hash from being computed once for each half.
func sums(row, from string) string { return sumsBy("timestamp", row, from) }

// sumsBy is the same for a table that has its time in another column.
func sumsBy(column, row, from string) string {
	return fmt.Sprintf(`
		SELECT date_trunc('month', at) AS month, count(*) AS n,
		       coalesce(sum(('x' || left(m, 16))::bit(64)::bigint), 0) AS a, coalesce(sum(('x' || right(m, 16))::bit(64)::bigint), 0) AS b
		FROM (SELECT %s::timestamptz AS at, md5(%s) AS m FROM %s OFFSET 0) hashed GROUP BY 1`, quote(column), row, from)
}

// total adds sums of months up.
func total(query string) string {
	return fmt.Sprintf(`SELECT coalesce(sum(n), 0)::bigint, coalesce(sum(a), 0)::text, coalesce(sum(b), 0)::text FROM (%s) months`, query)
}

// changed runs a statement that adds rows to a table of ours (sign +) or removes them (-), keeps convert_tally up, and returns the rows' sum. The
// statement ends in RETURNING *: the sum is of what is stored, not of what was meant to be.
func changed(row, sign string, aside bool, statement string) string {
	return fmt.Sprintf(`
		WITH moved AS (%s), months AS (%s), kept AS (
			INSERT INTO audit_convert.convert_tally AS t (month, aside, n, a, b) SELECT month, %t, %s n, %s a, %s b FROM months
			ON CONFLICT (month, aside) DO UPDATE SET n = t.n + excluded.n, a = t.a + excluded.a, b = t.b + excluded.b)
		%s`, statement, sums(row, "moved"), aside, sign, sign, sign, total("SELECT * FROM months"))
}

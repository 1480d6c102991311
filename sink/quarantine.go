package sink

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"auditsink/internal/event"
)

const copyQuarantine = `COPY audit_quarantine (lane_id, lane_offset, record_timestamp, key, value, headers, reason, detail)
	FROM STDIN (FORMAT binary)`

const quarantineFields = 8

// lastMilli is the end of the year 9999, in milliseconds since 1970.
const lastMilli = 253_402_300_799_999

// copyAside stores records as they came, with the reason why they are no rows.
func copyAside(ctx context.Context, conn *pgx.Conn, lane int32, records []aside) error {
	if len(records) == 0 {
		return nil
	}
	b := bytes.Clone(copyHeader)
	for _, r := range records {
		b = binary.BigEndian.AppendUint16(b, quarantineFields)
		b = appendInt32(b, lane)
		b = appendInt64(b, r.record.Offset)
		detail := r.Detail
		switch at := r.record.Timestamp; {
		case at < 0:
			b = appendNull(b)
		case at > lastMilli: // a producer may send any number
			b = appendNull(b)
			detail += fmt.Sprintf(" (the record's timestamp, %d ms, is beyond what its column holds)", at)
		default:
			b = appendTime(b, at*1000)
		}
		b = appendBytes(b, r.record.Key)
		b = appendBytes(b, r.record.Value)
		headers, err := encodeHeaders(r.record.Headers)
		if err != nil {
			return fmt.Errorf("encode the headers of a record: %w", err)
		}
		b = appendJSON(b, headers)
		b = appendBytes(b, []byte(r.Reason.String()))
		b = appendBytes(b, []byte(detail))
	}
	b = append(b, copyTrailer...)
	tag, err := conn.PgConn().CopyFrom(ctx, bytes.NewReader(b), copyQuarantine)
	if err != nil {
		return fmt.Errorf("copy %d records into audit_quarantine: %w", len(records), withoutContent(err))
	}
	if int(tag.RowsAffected()) != len(records) {
		return &HaltError{fmt.Errorf("copy into audit_quarantine: %d records sent, %d stored: find the trigger or rule that drops rows", len(records), tag.RowsAffected())}
	}
	return nil
}

// encodeHeaders gives a JSON array of [name, value in base64], in the record's order, nil where there are none. A name that jsonb
// can't hold is null, and its bytes follow in base64 as a third element.
func encodeHeaders(headers []event.Header) ([]byte, error) {
	if len(headers) == 0 {
		return nil, nil
	}
	pairs := make([][]any, len(headers))
	for i, h := range headers {
		if utf8.ValidString(h.Key) && !strings.ContainsRune(h.Key, 0) {
			pairs[i] = []any{h.Key, h.Value}
		} else {
			pairs[i] = []any{nil, h.Value, []byte(h.Key)}
		}
	}
	return json.Marshal(pairs)
}

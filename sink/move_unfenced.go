//go:build unfenced

package sink

// move without the conditions on epoch and offset, for a worker that the fault suite must find guilty.
const move = `UPDATE audit_lane SET next_offset = $2, leader_epoch = $3, updated_at = now()
	WHERE lane_id = $1 AND ($4::bigint, $5::bigint) IS NOT NULL`

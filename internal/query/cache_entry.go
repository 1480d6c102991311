package query

import (
	"encoding/binary"
	"hash/crc32"
)

// token stands for the generation in which an answer was read, and for the life of the server that has it: a Redis that is started again from an old copy of its memory, or a
// replica that takes over, may know generations that are over.
type token [16]byte

func (t token) zero() bool { return t == token{} }

// An entry is its format, the token, the checksum of all of it and of its key, and the answer.
const (
	entryFormat = 1
	entryHeader = 1 + len(token{}) + crc32.Size
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func seal(key [32]byte, t token, data []byte) []byte {
	entry := make([]byte, 0, entryHeader+len(data))
	entry = append(entry, entryFormat)
	entry = append(entry, t[:]...)
	entry = binary.BigEndian.AppendUint32(entry, checksum(key, t, data))
	return append(entry, data...)
}

// unseal returns the answer, unless the entry is of another generation, format or key, or damaged.
func unseal(key [32]byte, t token, entry []byte) ([]byte, bool) {
	if len(entry) < entryHeader || entry[0] != entryFormat || token(entry[1:1+len(t)]) != t {
		return nil, false
	}
	data := entry[entryHeader:]
	return data, binary.BigEndian.Uint32(entry[1+len(t):]) == checksum(key, t, data)
}

func checksum(key [32]byte, t token, data []byte) uint32 {
	sum := crc32.Update(entryFormat, castagnoli, key[:])
	sum = crc32.Update(sum, castagnoli, t[:])
	sum = crc32.Update(sum, castagnoli, binary.BigEndian.AppendUint64(nil, uint64(len(data))))
	return crc32.Update(sum, castagnoli, data)
}

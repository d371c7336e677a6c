package pki

import (
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"testing"
)

func TestKeyExchangeGroup(t *testing.T) {
	block, rest := pem.Decode(keyExchangeGroup())
	if block == nil || block.Type != "DH PARAMETERS" || len(rest) != 0 {
		t.Fatal("not one block of parameters")
	}
	var group struct{ Prime, Generator *big.Int }
	if _, err := asn1.Unmarshal(block.Bytes, &group); err != nil {
		t.Fatal(err)
	}
	half := new(big.Int).Rsh(group.Prime, 1)
	if group.Prime.BitLen() != 2048 || !group.Prime.ProbablyPrime(20) || !half.ProbablyPrime(20) || group.Generator.Int64() != 2 {
		t.Error("not a safe prime of 2048 bits with the generator 2")
	}
}
